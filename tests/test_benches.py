"""The bench against the original has to run at all, on a few rows and with a few steps. Its figures are not judged."""

import gzip
import json
import sys

import bench_reference

from guppylm import datagen


def test_the_bench_against_the_original_runs(small, tmp_path, monkeypatch, capsys):
    for part, seed in (("train", 0), ("eval", 1)):
        rows = "".join(json.dumps(row) + "\n" for row in datagen.generate(small, 60, seed))
        (tmp_path / f"{part}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    settings = {"steps": 100, "batch_size": 4, "learning_rate": 3e-4, "dropout": 0.1, "grad_clip": 1.0}
    baseline = {"best_nats_per_reply": 1e9, "settings": settings}
    (tmp_path / "baseline.json").write_text(json.dumps(baseline), encoding="utf-8")
    for number in ("TIMED", "WARM_UP"):
        monkeypatch.setattr(bench_reference, number, 1)
    monkeypatch.setattr(sys, "argv", ["bench", "--reference", str(tmp_path), "--steps", "2", "--batch-size", "4"])
    bench_reference.main()
    printed = capsys.readouterr().out
    assert "the original's best is passed after" in printed and "times sooner" in printed
