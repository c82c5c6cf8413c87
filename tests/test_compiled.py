import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import compiled  # noqa: E402

TEXT = """\
HloModule jit_scan_steps

%fused_relu (param.1: bf16[4,8]) -> bf16[4,8] {
  %param.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %maximum.1 = bf16[4,8]{1,0} maximum(%param.1, %param.1)
}

%short_loop (state.2: (s32[])) -> (s32[]) {
  %state.2 = (s32[]) parameter(0)
  ROOT %same.1 = (s32[]) tuple(%state.2)
}

%steps (state.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x.1 = bf16[4,8]{1,0} get-tuple-element(%state.1), index=1
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %relu.1 = bf16[4,8]{1,0} fusion(%x.1), calls=%fused_relu, metadata={op_name="jit(f)/jvp(ResNet)/max"}
  %conv.1 = (f32[4,8]{1,0}, u8[0]{0}) custom-call(%relu.1, %relu.1), metadata={op_name="jvp/conv/c"}
  %y.1 = f32[4,8]{1,0} get-tuple-element(%conv.1), index=0
  %flat.1 = f32[32]{0} bitcast(%y.1)
  %conv.2 = bf16[4,8]{1,0} custom-call(%y.1), metadata={op_name="transpose(jvp(ResNet))/conv/c"}
  ROOT %next.1 = (s32[], bf16[4,8]{1,0}) tuple(%i.1, %conv.2)
}

ENTRY %main (a: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %a = (s32[], bf16[4,8]{1,0}) parameter(0)
  %aug.1 = f32[9]{0} fusion(%a), kind=kLoop, calls=%fused_relu, metadata={op_name="augment"}
  %loop.1 = (s32[]) while(%a), condition=%c, body=%short_loop
  ROOT %loop.2 = (s32[], bf16[4,8]{1,0}) while(%a), condition=%c, body=%steps
}
"""


def test_kernels_and_bytes_are_those_of_one_step():
    """4 x 8 bfloat16 numbers are 64 bytes, float32 128; an operand given twice is read once."""
    assert set(compiled.count_kernels(TEXT)) == {
        compiled.Row("convolution", "forward", 1, 64 + 128),
        compiled.Row("convolution", "backward", 1, 128 + 64),
        compiled.Row("ReLU and residual", "forward", 1, 64 + 64),
    }


def test_a_program_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="expected a compiled program with a loop"):
        compiled.count_kernels("ENTRY %main (a: f32[]) -> f32[] {\n}\n")


def test_what_devices_exchange_is_counted_once():
    """A start and its end are one exchange; a tuple counts all its arrays."""
    text = """\
ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %sum.1 = (f32[4,8]{1,0}, bf16[2]{0}) all-reduce(%a, %b), to_apply=%add
  %sum.2 = f32[4,8]{1,0} all-reduce-start(%a), to_apply=%add
  %sum.3 = f32[4,8]{1,0} all-reduce-done(%sum.2)
  ROOT %gather.1 = f32[8,8]{1,0:T(8,128)} all-gather(%sum.3), dimensions={0}
}
"""
    assert compiled.communicated(text) == {
        "all-reduce": {"operations": 2, "bytes": 128 + 4 + 128},
        "all-gather": {"operations": 1, "bytes": 256},
    }


@pytest.mark.slow
def test_without_libtpu_one_line_says_what_is_missing():
    command = [sys.executable, str(BENCHMARKS / "compiled.py"), "--target", "v5e", "--widths", "8", "--strides", "2"]
    if importlib.util.find_spec("libtpu"):
        pytest.skip("takes minutes where libtpu is")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install -e '.[tpu]'" in done.stderr


@pytest.mark.slow
def test_an_epoch_compiles_without_a_gpu_or_one_line_says_what_is_missing():
    command = [sys.executable, str(BENCHMARKS / "compiled.py"), "--widths", "16,32", "--strides", "1,2"]
    done = subprocess.run(command, capture_output=True, text=True)
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    if not any(name.startswith("jax-cuda") for name in installed):
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install -e '.[cuda]'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("a step")
