"""Any value in any place of a document, chosen by hypothesis: it is used, or told in a sentence.

`test_fuzz.py` damages files with a list of values that were found to do harm; here values are drawn from all there are.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2c.errors import L2CError

KINDS = ("schedule", "family", "record", "costs", "comparison as JSON")
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def readers(load_benchmark, tmp_path_factory):
    fuzz, folder = load_benchmark("fuzz"), tmp_path_factory.mktemp("kinds")
    return fuzz.places, fuzz.kinds(folder), folder


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_in_any_place_is_read_or_refused(readers, kind):
    places, kinds, folder = readers
    one = kinds[kind]
    take, pack = one.parts
    known = list(places(take(one.good)))
    path = folder / f"drawn{one.suffix}"
    outcomes = set()

    @settings(
        max_examples=80,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(place=st.sampled_from(known), value=VALUES)
    def read(place, value):
        data = take(one.good)
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_bytes(pack(data))
        try:
            one.read(path)
        except L2CError as error:
            outcomes.add("refused" if str(error).strip() else "refused without a word")
        else:
            outcomes.add("read")

    read()
    assert "refused without a word" not in outcomes
    if kind == "record":  # a page lists what it could not read
        assert outcomes == {"read"}
    else:
        assert "refused" in outcomes
