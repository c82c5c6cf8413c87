import gzip
import json

import pytest

from cifar_flax.errors import UserError
from cifar_flax.training import profiling


@pytest.mark.slow
def test_steps_are_traced_where_what_shows_them_looks(tiny, few, tmp_path):
    path = profiling.profile(tiny, few, tmp_path / "trace")
    assert list(path.parent.glob("*.xplane.pb")), "XProf's"
    operations = [
        event["args"]["hlo_op"]
        for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        if "hlo_op" in event.get("args", {})
    ]
    assert len(operations) > 100
    with pytest.raises(UserError, match="holds a trace already"):
        profiling.claim(tmp_path / "trace")
