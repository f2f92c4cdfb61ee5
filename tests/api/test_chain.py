"""The verbs that simulate, on the smallest model; they share the simulators of the default board with the other tests."""

import numpy as np


def test_every_provider_gives_the_same_arrays_and_the_estimated_cycles(cli, loom, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(1).uniform(-9, 9, (3, 6)).astype(np.float32))
    results, outputs = {}, {}
    for provider in ("golden", "amaranth", "verilator"):
        done = cli("run", loom, "--on", provider, "--input", "in.npz", "--output", f"{provider}.npz", "--json")
        assert done.code == 0, done.err
        results[provider], outputs[provider] = done.json, np.load(tmp_path / f"{provider}.npz")["y"]
    np.testing.assert_array_equal(outputs["golden"], outputs["amaranth"])
    np.testing.assert_array_equal(outputs["golden"], outputs["verilator"])
    assert results["verilator"]["cycles"] == 3 * cli("estimate", loom, "--json").json["cycles"]
    assert results["golden"]["cycles"] is None


def test_verify_compares_every_tensor_of_every_candidate(cli, loom):
    found = cli("verify", loom, "--on", "golden,amaranth,verilator", "--samples", "5", "--json").json
    assert found["exact"] is True
    compared = [(c["candidate"], c["values"], c["mismatches"]) for c in found["comparisons"] if c["reference"] == "golden"]
    assert compared == [("amaranth", 25, 0), ("amaranth", 15, 0), ("verilator", 25, 0), ("verilator", 15, 0)]


def test_the_bench_passes_and_leaves_only_its_log(cli, loom, tmp_path):
    done = cli("sim", loom, "--samples", "1", "--seed", "7", "-o", "bench", "--json")
    assert done.code == 0, done.err
    assert done.json["passed"] is True
    assert done.json["seed"] == 7
    assert len(done.json["tests"]) >= 5
    assert done.json["waves"] is None
    assert done.json["log"] == "bench/bench.log"
    assert not list((tmp_path / "bench").glob("*.vcd"))
