"""What every writer and reader of folders needs: checksums, and one writer at a time."""

import os
import zlib
from pathlib import Path

from configurator import UserError

CHECKED = 1 << 28  # bytes: files up to this size have their checksum verified when opened


def fingerprint(path: Path) -> dict[str, int]:
    """Size in bytes and CRC-32 of a file, read in pieces."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def check_file(path: Path, told: dict[str, int], verify: bool = False, empty: bool = False) -> None:
    """Refuse a file that is absent, empty (unless it may be `empty`), of another size, or (if small
    or to `verify`) of another checksum."""
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the corpus anew")
    size = path.stat().st_size
    if size == 0 and not empty:
        raise UserError(f"{path} is empty; prepare the corpus anew")
    if size != told.get("bytes"):
        raise UserError(f"{path}: {size} bytes, but meta.json says {told.get('bytes')}")
    if (verify or size <= CHECKED) and fingerprint(path)["crc32"] != told.get("crc32"):
        raise UserError(f"{path} is damaged: its checksum is not the one in meta.json")


def lock_folder(partial: Path, folder: Path) -> int | None:
    """Refuse a second process that grows `folder` in `partial`. The lock lasts until the file
    descriptor that is returned is closed, or its process ends, however that ends."""
    if os.name != "posix":
        return None
    import fcntl

    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"another process is writing {folder}") from None
    except OSError:  # some network file systems have no locks
        pass
    return lock
