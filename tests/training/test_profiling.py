import dataclasses

import pytest

from cifar_flax.errors import UserError
from cifar_flax.training import profiling

TEXT = """\
HloModule jit_step

%fused_kernel (param: f32[4]) -> f32[4] {
  ROOT %convolution.1 = f32[4]{0} convolution(%param, %param), window={size=3x3}
}

%fused_copy (param.1: f32[4]) -> f32[4] {
  %param.1 = f32[4]{0} parameter(0)
  %transpose.1 = f32[4]{0} transpose(%param.1), dimensions={0}
  ROOT %copy.1 = f32[4]{0} copy(%transpose.1)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %conv.1 = f32[4]{0} convolution(%a, %a), metadata={op_name="jit(f)/jvp(ResNet)/ResNet.head/stage1_block1/conv2/conv"}
  %conv.2 = f32[4]{0} fusion(%a), calls=%fused_kernel, metadata={op_name="jit(f)/transpose(jvp(ResNet))/conv/conv"}
  %kernel = (f32[4]{0}, f32[4]{0}) fusion(%a), kind=kCustom, calls=%fused_kernel
  %turn = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused_copy
  %norm.1 = f32[4]{0} add(%a, %a), metadata={op_name="jit(f)/jvp(ResNet)/stage1_block1/shortcut_norm/sub"}
  %relu.1 = f32[4]{0} add(%a, %a), metadata={op_name="jit(f)/transpose(jvp(ResNet))/stage1_block1/jit(relu)/max"}
  %loss.1 = f32[4]{0} add(%a, %a), metadata={op_name="jit(f)/jvp(jit(log_softmax))/div"}
  %aug.1 = f32[4]{0} add(%a, %a), metadata={op_name="jit(f)/augment/vmap()/gather"}
  %opt.1 = f32[4]{0} add(%a, %a), metadata={op_name="jit(f)/optimize/vmap(jit(norm))/mul"}
  %sum.1 = f32[4]{0} all-reduce(%a), metadata={op_name="jit(f)/transpose(jvp(ResNet))/conv/conv"}
  ROOT %rest = f32[4]{0} add(%a, %a)
}
"""


@pytest.mark.parametrize(
    ("instruction", "part", "direction"),
    [
        ("conv.1", "convolution", "forward"),
        ("conv.2", "convolution", "backward"),
        ("kernel", "convolution", "backward"),
        ("turn", "transposition", ""),
        ("norm.1", "normalisation", "forward"),
        ("relu.1", "ReLU and residual", "backward"),
        ("loss.1", "loss", "forward"),
        ("aug.1", "augmentation", ""),
        ("opt.1", "optimizer and averaging", ""),
        ("sum.1", "sum over devices", ""),
        ("rest", "other", ""),
        ("not-there", "other", ""),
    ],
)
def test_instructions_belong_to_parts_of_the_step(instruction, part, direction):
    assert profiling.summarize([(instruction, 5.0)], TEXT) == [(part, direction, 1.0)]


def test_durations_of_a_part_are_added_and_the_largest_comes_first():
    events = [("aug.1", 1.0), ("conv.1", 2.0), ("conv.1", 4.0), ("rest", 1.0)]
    rows = profiling.summarize(events, TEXT)
    assert [(row.part, row.share) for row in rows] == [
        ("convolution", 0.75),
        ("augmentation", 0.125),
        ("other", 0.125),
    ]


def test_an_event_within_another_is_not_counted_twice():
    events = [(0.0, 10.0, "a"), (2.0, 3.0, "b"), (3.0, 1.0, "c"), (5.0, 2.0, "d"), (10.0, 4.0, "e")]
    own = profiling.own_durations(reversed(events))
    assert own == [("a", 5.0), ("b", 2.0), ("c", 1.0), ("d", 2.0), ("e", 4.0)]
    assert sum(duration for _, duration in own) == 14.0


def test_events_that_overlap_in_part_are_not_counted_twice():
    events = [(0.0, 20.0, "a"), (5.0, 5.0, "b"), (8.0, 4.0, "c"), (18.0, 4.0, "d"), (30.0, 1.0, "e")]
    own = profiling.own_durations(events)
    assert own == [("a", 11.0), ("b", 3.0), ("c", 4.0), ("d", 4.0), ("e", 1.0)]


@pytest.mark.slow
def test_trace_of_real_steps(tiny, few, tmp_path):
    found = profiling.profile(tiny, few, tmp_path / "trace")
    assert list(tmp_path.glob("trace/plugins/profile/*/*.xplane.pb"))
    assert found.step_seconds > 0 and sum(row.share for row in found.rows) == pytest.approx(1)
    parts = {row.part for row in found.rows}
    assert {"convolution", "normalisation", "augmentation", "optimizer and averaging"} <= parts
    assert sum(row.share for row in found.rows if row.part == "other") < 0.5
    assert "images/s" in profiling.table(found)
    with pytest.raises(UserError, match="holds a trace already"):
        profiling.profile(dataclasses.replace(tiny, seed=1), few, tmp_path / "trace")
