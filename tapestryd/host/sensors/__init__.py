"""What this machine is doing, read from the kernel's files: power, processors, programs, GPUs, the clock on the wall.

Each sensor is a module of its own, takes the root of the file system as a parameter, and gives None for what it cannot know:
nothing here is guessed, and nothing is decided (host/policy.py does). Standard library only, but for NVIDIA's binding of NVML,
which may be missing. Reading is cheap, a few small files; what is not asked for is not read.
"""
