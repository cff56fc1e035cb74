// Numbers, times and names as people read them; the same words as `tapestry` prints. Pure.

/** Two units at most: "9.4 s", "3m 20s", "3d 4h". */
export function duration(seconds) {
  if (seconds < 60) return seconds < 10 ? `${seconds.toFixed(1)} s` : `${seconds.toFixed(0)} s`;
  const whole = Math.floor(seconds);
  for (const [name, unit, belowName, below] of [
    ["d", 86400, "h", 3600],
    ["h", 3600, "m", 60],
    ["m", 60, "s", 1],
  ]) {
    if (whole >= unit) {
      const rest = Math.floor((whole % unit) / below);
      return `${Math.floor(whole / unit)}${name}${rest ? ` ${rest}${belowName}` : ""}`;
    }
  }
}

export function size(bytes) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1024)
      return unit === "B" || bytes >= 100 ? `${bytes.toFixed(0)} ${unit}` : `${bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} TiB`;
}

/** Three digits or so: "850", "21.3k", "1.84M". */
export function number(value) {
  for (const [divisor, unit] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (value >= divisor) return `${Number((value / divisor).toPrecision(3))}${unit}`;
  }
  return value.toFixed(0);
}

export const whole = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
export const loss = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
export const short = (peer) => (peer.length <= 9 ? peer : `${peer.slice(0, 4)}…${peer.slice(-4)}`);
export const count = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

/** What others say of themselves, without what could disturb a line: controls, and marks that turn text around. */
export const clean = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, "?");

/** A moment in this browser's time zone, down to the second: "2026-11-27 06:01:12 +01:00". */
export function stamp(ms) {
  const at = new Date(ms),
    two = (n) => String(n).padStart(2, "0"),
    off = -at.getTimezoneOffset();
  const zone = `${off < 0 ? "-" : "+"}${two(Math.floor(Math.abs(off) / 60))}:${two(Math.abs(off) % 60)}`;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(ms)}:${two(at.getSeconds())} ${zone}`;
}

export function clock(ms) {
  const at = new Date(ms);
  return `${String(at.getHours()).padStart(2, "0")}:${String(at.getMinutes()).padStart(2, "0")}`;
}

/** A moment to come, to the minute: "18:05", or with its date where that is another one than that of `now`. */
export function moment(ms, now) {
  const [day, today] = [stamp(ms + 30000), stamp(now)].map((text) => text.slice(0, 10));
  return (day === today ? "" : `${day} `) + clock(ms + 30000);
}

export function since(ms, now) {
  const seconds = (now - ms) / 1000;
  return seconds < 5
    ? "just now"
    : `${duration(seconds < 60 ? Math.round(seconds / 5) * 5 : seconds).replace(/m \d+s$/, "m")} ago`;
}
