"""A store URL that is none is told so, without what is secret in it."""

from __future__ import annotations

import pytest

from dolmen.errors import BadSetting, BadVolume
from dolmen.stores import SCHEMES, open_existing, open_store


@pytest.mark.parametrize("url", ["", "/var/lib/dolmen", "sqlite:///x", "ftp://user:secret@host/x"])
async def test_an_unknown_scheme_is_told_with_the_known_ones(url):
    with pytest.raises(BadSetting, match="begins with one of memory:, volume:") as caught:
        await open_store(url)
    assert "secret" not in str(caught.value)


async def test_who_only_reads_makes_no_volume(tmp_path):
    url = f"volume:{tmp_path / 'v'}"
    with pytest.raises(BadVolume, match="no volume"):
        await open_existing(url)
    assert not (tmp_path / "v").exists()
    await (await open_store(url)).aclose()
    await (await open_existing(url)).aclose()
    await (await open_existing("memory:")).aclose()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_half_an_ipv6_address_is_told(scheme):
    with pytest.raises(BadSetting, match="is no URL") as caught:
        await open_store(f"{scheme}://user:secret@[::1/db")
    assert "secret" not in str(caught.value)
