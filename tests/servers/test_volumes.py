"""Who works beside a server."""

from dolmen.config import Settings
from dolmen.servers.compacting import CompactingBeside
from dolmen.servers.scrubbing import Scrubbing
from dolmen.servers.volumes import beside_volume


def test_only_a_volume_is_looked_after_and_not_scrubbed_when_that_is_off():
    settings = Settings()
    kinds = [type(work) for work in beside_volume("volume:/srv/data", settings)]
    assert kinds == [CompactingBeside, Scrubbing]
    assert beside_volume("redis://127.0.0.1", settings) == []
    off = Settings.model_validate({"scrub": {"every_days": 0.0}})
    assert [type(work) for work in beside_volume("volume:/srv/data", off)] == [CompactingBeside]
