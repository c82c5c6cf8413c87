"""Why SGD starts slowly here: how many directions the gradient of a convolution's kernel has.

    python benchmarks/gradient_rank.py

For the compact network, the gradient of the loss over the sample's 1,000 images, of each kernel as a
matrix from inputs to outputs: its stable rank (sum of squared singular values over the largest one
squared; 1 means a single direction), and the share of that sum in the first direction. At
initialisation and after some steps of SGD and of Muon.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax import data, machine
from cifar_flax.config import PRESETS
from cifar_flax.network import model
from cifar_flax.training import metrics
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import Split, build_program


def describe(gradient) -> str:
    kernels = [np.asarray(x).reshape(-1, x.shape[-1]) for x in jax.tree.leaves(gradient) if x.ndim == 4]
    squares = [np.linalg.svd(kernel, compute_uv=False) ** 2 for kernel in kernels]
    squares = [s for s in squares if s[0] > 0]  # a branch whose last scale is 0 has no gradient yet
    rank = np.median([s.sum() / s[0] for s in squares])
    share = np.median([s[0] / s.sum() for s in squares])
    return f"stable rank {rank:.2f}, share of the first direction {100 * share:.0f}%"


def main() -> None:
    sample = data.load_cifar10(source="sample")
    images, labels = data.normalize(jnp.asarray(sample.train_images)), jnp.asarray(sample.train_labels)
    for name, rate in (("SGD", 0.0), ("Muon", PRESETS["compact"].muon_learning_rate)):
        config = dataclasses.replace(PRESETS["compact"], muon_learning_rate=rate, warmup_epochs=0)
        program = build_program(config, len(images))

        @jax.jit
        def gradient(params, network=program.model):
            def loss(params):
                sums = metrics.measure(model.forward(network, params, images), labels, jnp.ones(len(labels), bool))
                return sums.loss_sum / sums.count

            return jax.grad(loss)(params)

        state = program.create_state()
        train = program.place(Split(sample.train_images, sample.train_labels))
        for epoch in range(26):
            if epoch in (0, 3, 25):
                found = describe(gradient(jax.device_get(state.params)))
                print(f"{name} after {int(state.step):>3} steps: {found}")
            empty = program.place(Metrics.empty())
            *_, (_, state, _) = program.train_steps(state, empty, train, epoch + 1, 0)


if __name__ == "__main__":
    machine.set_up()
    main()
