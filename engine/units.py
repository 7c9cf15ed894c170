"""Sizes, in bytes unless the name says otherwise. Powers of two are KiB, MiB, GiB; a "MB" in a setting is 1,000,000 bytes."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
MB = 1_000_000


def human_bytes(count: float) -> str:
    """Return a size for people: three significant digits and a binary unit, such as `1.50 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.{max(0, 3 - len(str(int(abs(size)))))}f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
