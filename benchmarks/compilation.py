"""Where a cold run's first epoch goes on a GPU, and which of XLA's flags make it shorter.

    python benchmarks/compilation.py --out compilation.json

Each set of flags is tried in a process of its own, with an empty cache or with an earlier one's: seconds until the
first steps are done, until the first evaluation is done, and then a step's, the median of an epoch's. The images are
noise.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# By name: flags of XLA, and whose cache is used, its own where that is not another's.
VARIANTS = {
    "default": ("", "default"),
    "convolutions in graphs": ("--xla_gpu_enable_command_buffer=+CONVOLUTION", "default"),
    "no Triton": (
        "--xla_gpu_experimental_enable_fusion_autotuner=false --xla_gpu_enable_triton_gemm=false",
        "no Triton",
    ),
    "no fusion autotuner": ("--xla_gpu_experimental_enable_fusion_autotuner=false", "no fusion autotuner"),
    "no Triton, level 2": (
        "--xla_gpu_experimental_enable_fusion_autotuner=false --xla_gpu_enable_triton_gemm=false "
        "--xla_gpu_autotune_level=2",
        "no Triton, level 2",
    ),
    "no Triton, again": (
        "--xla_gpu_experimental_enable_fusion_autotuner=false --xla_gpu_enable_triton_gemm=false",
        "no Triton",
    ),
}


def measure(preset: str, muon: bool) -> dict:
    """Seconds of what a run does first, in this process."""
    start = time.perf_counter()

    import jax
    import numpy as np
    from machine import describe_machine

    from cifar_flax import config
    from cifar_flax.training.metrics import Metrics
    from cifar_flax.training.program import Split, build_program

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    chosen = config.from_flags({"preset": preset} | ({} if muon else {"muon_learning_rate": 0.0}))
    size = 1000 if preset == "smoke" else 50_000
    random = np.random.default_rng(0)

    def noise(count: int) -> Split:
        images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return Split(images, random.integers(0, 10, count, np.int32))

    marks = {"imported": time.perf_counter() - start}
    program = build_program(chosen, size)
    train, test = program.place(noise(size)), program.place(noise(size // 5))
    first = jax.block_until_ready((program.create_state(), program.place(Metrics.empty())))
    marks["state"] = time.perf_counter() - start
    chunks, before, last = [], 0, first[0]
    for steps, state, sums in program.train_steps(*first, train, 1, 0):
        float(sums.loss_sum)
        chunks.append((steps - before, time.perf_counter() - start))
        before, last = steps, state
    marks["first_steps"] = chunks[0][1]
    marks["epoch"] = chunks[-1][1]
    float(program.evaluate(last.ema_params, test).loss_sum)
    marks["evaluation"] = time.perf_counter() - start
    steps = [1000 * (b[1] - a[1]) / b[0] for a, b in itertools.pairwise(chunks)]
    return {"seconds": marks, "step_ms": statistics.median(steps), "machine": describe_machine()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="resnet18")
    parser.add_argument("--out", type=Path, default=Path("compilation.json"))
    parser.add_argument("--caches", type=Path, default=Path("/tmp/compilation"), help="folder of the caches")
    parser.add_argument("--minutes", type=float, default=2.5, help="begin nothing after so many (2.5)")
    parser.add_argument("--sgd", action="store_true", help="without Muon")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(flags.preset, not flags.sgd)))
        return 0
    found, begun = {}, time.monotonic()
    for name, (xla_flags, cache) in VARIANTS.items():
        if time.monotonic() - begun > 60 * flags.minutes:
            break
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip(),
            "JAX_COMPILATION_CACHE_DIR": str(flags.caches / cache.replace(" ", "-").replace(",", "")),
        }
        words = ["--preset", flags.preset, *(["--sgd"] if flags.sgd else []), "--one"]
        done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
        with open(flags.out.with_suffix(".log"), "a") as log:  # with TF_CPP_VMODULE what the compiler says of itself
            print(f"$ {environment['XLA_FLAGS']}", done.stderr[-2_000_000:], sep="\n", file=log)
        result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-600:]}
        found[name] = {"flags": xla_flags, "cache": cache} | result
        print(name, found[name].get("seconds"), found[name].get("step_ms"), found[name].get("error", ""), flush=True)
        flags.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
