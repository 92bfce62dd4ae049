"""`services.common.identifiers`."""

import uuid

from services.common.identifiers import canonical_hash, revision_name, unit_of, uuid7


def test_uuid7_is_one_and_sorts_by_time() -> None:
    ids = [uuid7() for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    assert all(uuid.UUID(i).version == 7 and uuid.UUID(i).variant == uuid.RFC_4122 for i in ids)
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)


def test_units_of_different_tenants_differ_and_need_the_key() -> None:
    assert unit_of(b"k", "a", "bc") != unit_of(b"k", "ab", "c")
    assert unit_of(b"k", "a", "b") != unit_of(b"other", "a", "b")
    assert len(unit_of(b"k", "a", "b")) == 32


def test_a_revision_is_named_by_version_and_specification() -> None:
    assert canonical_hash({"a": 1, "b": 2}) == canonical_hash({"b": 2, "a": 1})
    name = revision_name("assistant", "4", canonical_hash({"max_model_len": 256}))
    assert name.startswith("assistant-v4-")
    assert name != revision_name("assistant", "4", canonical_hash({"max_model_len": 512}))
