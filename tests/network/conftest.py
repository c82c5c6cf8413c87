import functools

import jax
import pytest


@pytest.fixture(scope="session")
def pull_back():
    """A function of another, its arguments and a gradient: the value, and the gradients by the arguments.

    Compiled as one program, as in use: one for each operation takes ten times as long.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(function, arguments, gradient):
        value, vjp = jax.vjp(function, *arguments)
        return (value, *vjp(gradient))

    return lambda function, *arguments, gradient: compiled(function, arguments, gradient)
