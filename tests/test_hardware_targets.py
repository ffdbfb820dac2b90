"""Targets: the table of hardware.md, discovery, nearest names, levels, TOML files and plug-ins."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from condensec.errors import ConfigError
from condensec.hardware import isa, target

NAMES = {
    "host", "x86-avx2", "x86-avx512", "x86-vnni", "mobile-cpu", "mobile-cpu-v8.0",
    "nvidia-t4", "nvidia-a10", "nvidia-l4", "jetson-orin",
}  # fmt: skip

SKYLAKE = "sse4_2 avx avx2 fma avx512f avx512dq avx512bw avx512vl"


def test_all_targets_are_there_and_serialise() -> None:
    assert set(target.all_targets()) == NAMES
    for one in target.all_targets().values():
        assert json.loads(json.dumps(one.to_json()))["name"] == one.name
        assert one.available() is None


@pytest.mark.parametrize(
    ("name", "grid", "conv32", "depthwise8", "sparse"),
    [
        ("x86-avx2", 8, 4, 16, False),
        ("x86-avx512", 16, 4, 16, False),
        ("x86-vnni", 16, 4, 16, False),
        ("mobile-cpu", 4, 1, 16, False),
        ("mobile-cpu-v8.0", 4, 1, 16, False),
        ("nvidia-t4", 32, 1, 32, False),
        ("nvidia-a10", 64, 1, 32, True),
        ("jetson-orin", 64, 1, 32, True),
    ],
)
def test_the_table(name: str, grid: int, conv32: int, depthwise8: int, sparse: bool) -> None:
    one = target.get(name)
    assert one.grid == grid
    assert one.alignment("conv", "fp32") == conv32
    assert one.alignment("depthwise", "int8") == depthwise8
    assert ("2:4" in one.sparsity) == sparse


def test_levels_lie_on_the_grid() -> None:
    avx512 = target.get("x86-avx512")
    assert avx512.levels(64) == (64, 48, 32, 16)
    assert avx512.levels(70) == (70, 64, 48, 32, 16)
    assert avx512.levels(24) == (24, 20, 16, 12, 8, 4)  # the grid would leave one choice
    assert avx512.levels(3) == (3, 2, 1)
    assert avx512.levels(64, "depthwise", "int8") == (64, 48, 32, 16)
    assert avx512.levels(5, align=1) == (5, 4, 3, 2, 1)
    assert avx512.levels(64, align=30) == (64, 60, 30)
    assert target.get("mobile-cpu").levels(9) == (9, 8, 4)
    for one in target.all_targets().values():
        for size in range(1, 130):
            levels = one.levels(size)
            assert levels[0] == size
            assert list(levels) == sorted(set(levels), reverse=True)
            assert levels[-1] >= 1


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mobile-cpu'"):
        target.get("moble-cpu")
    with pytest.raises(ConfigError, match=r"no target 'zzz'; known targets: host"):
        target.get("zzz")


def test_a_name_defined_twice_is_refused() -> None:
    one = target.get("nvidia-t4")
    with pytest.raises(ConfigError, match="'nvidia-t4' is defined in both a and b"):
        target.collect([("a", one), ("b", one)])
    assert set(target.collect([("a", one), ("b", replace(one, name="other"))])) == {"nvidia-t4", "other"}


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "sse2", "x86"),
        ("AMD64", "avx avx2 fma", "avx2"),
        ("x86_64", "avx2 fma avx_vnni", "avx_vnni"),
        ("x86_64", SKYLAKE, "avx512"),
        ("x86_64", SKYLAKE + " avx512_vnni", "avx512_vnni"),
        ("x86_64", "avx2 fma avx512f", "avx2"),
        ("aarch64", "fp asimd", "armv8.0"),
        ("arm64", "fp asimd asimddp asimdhp", "armv8.2"),
        ("riscv64", "", "unknown"),
    ],
)
def test_isa_levels(machine: str, flags: str, expected: str) -> None:
    assert isa.level(machine, flags.split()) == expected
    assert (
        isa.level(machine, isa.cpuinfo_flags(f"processor : 0\nflags\t: {flags}\nflags : none\n")) == expected
    )


def test_isa_order() -> None:
    assert isa.at_least("avx512_vnni", "avx2")
    assert isa.at_least("avx_vnni", "avx2")
    assert not isa.at_least("avx2", "avx512")
    assert not isa.at_least("avx512_vnni", "avx_vnni")
    assert not isa.at_least("armv8.2", "avx2")
    assert isa.detect() in (*isa.ORDER["x86"], *isa.ORDER["arm"], "unknown")


def test_host_follows_the_cpu() -> None:
    from condensec.hardware.targets.host import host

    assert (host("avx512_vnni").grid, host("avx2").grid, host("armv8.2").grid) == (16, 8, 4)
    assert host("armv8.2").alignment("conv") == 1
    assert not host("armv8.2").fixed_shapes
    assert target.get("host").how_verified() == "measured"
    assert target.get("nvidia-t4").how_verified() == "modelled"


def test_a_target_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "phone.toml"
    path.write_text('base = "mobile-cpu"\ngrid = 12\n[peak]\nclock_ghz = 1.0\nfma = {fp32 = 4}\n')
    phone = target.get(str(path))
    assert (phone.name, phone.grid, phone.peak.clock_ghz, phone.isa) == ("phone", 12, 1.0, "armv8.2")
    for text, message in (
        ("colour = 3", "no field 'colour'"),
        ("grid = [", "can't read"),
        ('name = "x"', "missing"),
        ('base = "mobile-cpu"\ngrid = 0', "at least 1"),
        ('base = "mobile-cpu"\nprecisions = ["fp7"]', "precisions are among"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            target.get(str(path))


def test_plugins_are_found_and_broken_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (
        EntryPoint("good", "test_plugin_module:TARGETS", target.ENTRY_POINTS),
        EntryPoint("bad", "no_such_module:TARGETS", target.ENTRY_POINTS),
    )
    mine = replace(target.get("x86-avx2"), name="my-board")
    monkeypatch.setattr(EntryPoint, "load", lambda point: [mine] if point.name == "good" else 1 / 0)
    monkeypatch.setattr(target, "entry_points", lambda group: points)
    target._discover.cache_clear()
    try:
        assert target.get("my-board").grid == 8
        with pytest.raises(ConfigError, match=r"plugin bad .*ZeroDivisionError"):
            target.get("nothing-like-it")
    finally:
        target._discover.cache_clear()


def test_missing_packages_make_a_target_unavailable() -> None:
    one = replace(target.get("nvidia-t4"), needs=("surely_not_installed_anywhere",))
    assert "surely_not_installed_anywhere" in (one.available() or "")
