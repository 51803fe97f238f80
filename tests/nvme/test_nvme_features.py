"""What features are after a reset, and which of their bits a host can set (NVMe 1.4 §5.21.1, §7.3.2)."""

from __future__ import annotations

import pytest

from bellwire.bundled.nvme.features import FEATURES, WORDS, FeatureId, Features

NOTICES = 0xFF | 1 << 8 | 1 << 10  # §5.21.1.11: SMART's, of namespaces, of telemetry
EXPECTED = {
    FeatureId.ARBITRATION: (7, 0xFFFF_FF07),
    FeatureId.POWER_MANAGEMENT: (0, 0),
    FeatureId.TEMPERATURE_THRESHOLD: (343, 0xFFFF),
    FeatureId.ERROR_RECOVERY: (0, 0),
    FeatureId.WRITE_CACHE: (1, 1),
    FeatureId.QUEUES: (0, 0),
    FeatureId.COALESCING: (0, 0xFFFF),
    FeatureId.VECTOR: (0, 0),
    FeatureId.ATOMICITY: (0, 1),
    FeatureId.EVENTS: (0, NOTICES),
    FeatureId.TIMESTAMP: (0, 1),
}


@pytest.mark.parametrize("identifier", FeatureId)
def test_each_feature_has_the_specifications_default_and_bits(identifier: FeatureId) -> None:
    feature = FEATURES[identifier]
    assert (feature.default, feature.settable) == EXPECTED[identifier]


def test_a_reset_leaves_nothing_of_what_was_set() -> None:
    words = memoryview(bytearray(b"\xff" * 4 * WORDS)).cast("I")
    Features(words, queues=4, namespaces=1).reset()
    expected = [0] * WORDS
    for identifier, (default, _) in EXPECTED.items():
        expected[identifier] = default
    assert words.tolist() == expected


@pytest.mark.parametrize(
    ("cold", "hot", "warned"),
    [(0, 343, False), (297, 299, False), (298, 299, True), (297, 298, True), (0, 297, True), (299, 343, True)],
)
def test_a_warning_is_set_unless_the_temperature_is_between_the_thresholds(cold: int, hot: int, warned: bool) -> None:
    """§5.21.1.4. The temperature is 298 kelvins."""
    words = memoryview(bytearray(4 * WORDS)).cast("I")
    features = Features(words, queues=4, namespaces=1)
    words[0], words[FeatureId.TEMPERATURE_THRESHOLD] = cold, hot
    assert features.warnings == (2 if warned else 0)
    assert not features.alarming
    words[FeatureId.EVENTS] = 2
    assert features.alarming is warned
