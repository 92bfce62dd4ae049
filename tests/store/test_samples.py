"""Samples of stable's answers: what choosing among many needs comes without the vectors, and a user's samples go when asked."""

from __future__ import annotations

from dataclasses import replace

from services.store import Sample, SampleKey, Store


def sample(name: str, at: float, model: str | None = "m") -> Sample:
    vector = None if model is None else b"\0" * 8
    return Sample(name, "assistant", "v1", f"u-{name}", "", at, model=model, embedding=vector, words=3)


def test_keys_are_of_one_model_and_in_order_and_samples_come_by_name(store: Store) -> None:
    rows = [
        sample("b", 2.0),
        sample("a", 2.0),
        sample("c", 1.0),
        sample("d", 1.5, "other"),
        sample("e", 1.5, None),
        sample("f", 3.0),
    ]
    store.put_samples([*rows, replace(sample("g", 2.0), service="other")])
    keys = store.sample_keys("assistant", 1.0, 3.0, "m")
    assert keys == [SampleKey("c", "u-c", 1.0), SampleKey("a", "u-a", 2.0), SampleKey("b", "u-b", 2.0)]
    assert store.samples_named(["a", "f", "gone"]) == {"a": rows[1], "f": rows[5]}
    assert store.samples_named([]) == {}


def test_more_names_than_one_statement_takes(store: Store) -> None:
    rows = [sample(f"{i:05}", float(i)) for i in range(2_345)]
    store.put_samples(rows)
    assert list(store.samples_named([row.id for row in rows]).values()) == rows
