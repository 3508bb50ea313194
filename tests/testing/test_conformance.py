"""The suite is tried on stores that break the contract: each must fail the test named."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

SABOTAGED = Path(__file__).parent / "sabotaged.py"


def test_every_sabotage_is_found_by_the_test_that_is_there_for_it(tmp_path):
    spec = importlib.util.spec_from_file_location("sabotaged", SABOTAGED)
    sabotaged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sabotaged)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
    chosen = [f"{SABOTAGED}::{store}::{test}" for store, test in sabotaged.FOUND_BY.items()]
    run = subprocess.run(
        [*command, f"--junitxml={report}", *chosen],
        cwd=SABOTAGED.parents[2],
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    failed = {
        case.get("classname").rpartition(".")[2]
        for case in ElementTree.parse(report).iter("testcase")
        if case.find("failure") is not None
    }
    assert failed == set(sabotaged.FOUND_BY)
