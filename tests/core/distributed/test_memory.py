"""Memory that a process can take, beside the limits of containers."""

import pytest

from obert_modifiers.core.distributed import memory

FREE = 8 * 2**30
SECOND = "memory.max", "memory.current", ""
FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"


def _group(folder, names, most, used: int) -> None:
    limit, use, prefix = names
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(f"{most}\n")
    (folder / use).write_text(f"{used}\n")
    stat = f"anon 5\n{prefix}active_file 10\n{prefix}inactive_file 20\n"
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("own", "groups", "free"),
    [
        (None, (), FREE),
        ("0::/\n", (), FREE),  # the root of a machine has no limit
        ("0::/\n", (("", SECOND, 1000, 400),), 630),
        ("0::/a/b\n", (("a/b", SECOND, "max", 400), ("a", SECOND, 500, 400)), 130),
        ("0::/of/the/host\n", (("", SECOND, 1000, 400),), 630),
        ("0::/\n", (("", SECOND, 1000, 2000),), 0),
        ("4:cpu:/x\n3:memory:/y\n0::/\n", (("memory/y", FIRST, 900, 400),), 530),
        ("3:memory:/\n", (("memory", FIRST, 2**63 - 4096, 400),), FREE),
    ],
)
def test_limits_of_containers(own, groups, free, tmp_path, monkeypatch) -> None:
    told, root = tmp_path / "meminfo", tmp_path / "groups"
    told.write_text(f"MemTotal: 9 kB\nMemAvailable:   {FREE // 1024} kB\n")
    for below, names, most, used in groups:
        _group(root / below, names, most, used)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_MEMINFO", told)
    monkeypatch.setattr(memory, "_GROUPS", root)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.available_memory() == free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available_memory() == free // 2
