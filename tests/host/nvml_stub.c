/* NVML as a driver with two GPUs would answer it: enough of libnvidia-ml.so.1 to hold our side of its binary interface.
   NVML_STUB: "" two GPUs, the second used by nobody; "bare": no samples of single processes; "lost": the GPU fell off the bus;
   "none": no driver. Numbers of errors and layouts of structs are NVML's (nvml.h). */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } process_t;
typedef struct { unsigned int pid; unsigned long long time_us; unsigned int sm, memory, encoder, decoder; } sample_t;

static int is(const char *name) { const char *said = getenv("NVML_STUB"); return said && !strcmp(said, name); }
static int lost(void) { return is("lost") ? GPU_IS_LOST : SUCCESS; }
static int second(void *device) { return device == (void *)2; }

int nvmlInitWithFlags(unsigned int flags) { return is("none") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return "stub"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)(size_t)(index + 1); return SUCCESS; }

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int size) {
    strncpy(uuid, second(device) ? "GPU-22222222-0000-0000-0000-000000000000" : "GPU-11111111-0000-0000-0000-000000000000", size);
    return SUCCESS;
}
int nvmlDeviceGetName(void *device, char *name, unsigned int size) { strncpy(name, "NVIDIA Stub", size); return SUCCESS; }
int nvmlDeviceGetTemperature(void *device, unsigned int sensor, unsigned int *celsius) {
    *celsius = second(device) ? 41 : 77;
    return lost();
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned int *rates) {
    rates[0] = second(device) ? 0 : 95, rates[1] = 40;
    return lost();
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *bytes) {
    bytes[0] = 24ULL << 30, bytes[1] = 4ULL << 30, bytes[2] = 20ULL << 30;
    return lost();
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { *milliwatts = 318500; return second(device) ? NOT_SUPPORTED : lost(); }

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *found) {
    static const process_t users[] = {{100, 1 << 20, -1, -1}, {200, 1 << 20, -1, -1}, {300, 1 << 20, -1, -1}};
    if (lost()) return GPU_IS_LOST;
    if (second(device)) return *count = 0, SUCCESS;
    if (*count < 3) return *count = 3, INSUFFICIENT_SIZE;
    memcpy(found, users, sizeof users);
    return *count = 3, SUCCESS;
}
int nvmlDeviceGetProcessUtilization(void *device, sample_t *found, unsigned int *count, unsigned long long since_us) {
    static const sample_t samples[] = {
        {200, 2000, 7, 0, 0, 0}, {100, 2000, 60, 0, 0, 0}, {200, 1000, 99, 0, 0, 0}, {300, 2000, 21, 0, 0, 0}};
    if (lost()) return GPU_IS_LOST;
    if (is("bare")) return NOT_SUPPORTED;
    if (second(device)) return NOT_FOUND;
    if (*count < 4) return *count = 4, INSUFFICIENT_SIZE;
    memcpy(found, samples, sizeof samples);
    return *count = 4, SUCCESS;
}
