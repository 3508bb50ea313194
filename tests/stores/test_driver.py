"""Drivers of engines are asked for only where their engine is used."""

import json
import subprocess
import sys

import pytest

from dolmen.errors import BadSetting
from dolmen.stores.driver import driver


def test_a_driver_that_is_there_is_imported():
    assert driver("json", "json") is json


def test_a_driver_that_is_missing_is_told_with_the_line_to_type():
    with pytest.raises(BadSetting, match=r"pip install 'dolmen\[redis\]'"):
        driver("no_such_driver.asyncio", "redis")


def test_no_driver_is_imported_by_the_commands_themselves():
    code = (
        "import sys, dolmen.cli.app, dolmen.servers.api, dolmen.servers.blob, dolmen.stores\n"
        "print(*{'hiredis', 'redis', 'asyncpg', 'obstore'}.intersection(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
