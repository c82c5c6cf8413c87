"""Random crop, rotation and cutout, on the device.

`augment` draws one set of parameters an image and applies three deterministic functions, each
usable alone. All work on normalised images, where 0 is the mean colour of the training set, and
fill with 0 whatever comes from outside the image: the network then sees "nothing" rather than a
black border, exactly as it does in the zero padding of its own convolutions.

Order: crop and rotation first, as one bilinear resampling (a second one would blur twice), then
cutout, so that the square keeps its sharp, axis-aligned edge. Each is applied to every image.
"""

import jax
import jax.numpy as jnp


def shift_and_rotate(images: jax.Array, shifts: jax.Array, angles_degrees: jax.Array) -> jax.Array:
    """Crops each image at a shifted window of itself and rotates it about the image's centre.

    The output pixel at p shows the input at R(p - c) + c + shift, bilinearly interpolated, where
    c is the centre; input pixels outside the image are 0. With an angle of 0 this is exactly the
    window of the zero-padded image that starts `shift` away from the image's own corner.

    Args:
      images: float `[B, H, W, C]`.
      shifts: `[B, 2]`, rows and columns, in pixels.
      angles_degrees: float `[B]`; positive turns the picture counter-clockwise.

    Returns:
      float `[B, H, W, C]`, of the input's dtype.
    """
    _, height, width, _ = images.shape
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2

    def one(image, shift, angle):
        cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
        y = cos * rows + sin * columns + (height - 1) / 2 + shift[0]
        x = cos * columns - sin * rows + (width - 1) / 2 + shift[1]
        top, left = jnp.floor(y), jnp.floor(x)
        result = jnp.zeros_like(image)
        for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                pixel = image[
                    jnp.clip(row, 0, height - 1).astype(jnp.int32),
                    jnp.clip(column, 0, width - 1).astype(jnp.int32),
                ]
                weight = (row_weight * column_weight * inside).astype(image.dtype)
                result += weight[..., None] * pixel
        return result

    return jax.vmap(one)(images, shifts.astype(jnp.float32), angles_degrees.astype(jnp.float32))


def cutout(images: jax.Array, centers: jax.Array, size: int) -> jax.Array:
    """Sets a square of each image to 0, clipped at the border (DeVries and Taylor 2017).

    Args:
      images: float `[B, H, W, C]`.
      centers: int `[B, 2]`; the square covers rows `[center - size // 2, center + (size + 1) // 2)`,
        and columns likewise, so far as they are inside.
      size: side of the square, in pixels.

    Returns:
      float `[B, H, W, C]`, of the input's dtype.
    """
    _, height, width, _ = images.shape
    first = centers - size // 2
    row_offset = jnp.arange(height)[None, :] - first[:, :1]
    column_offset = jnp.arange(width)[None, :] - first[:, 1:]
    in_rows = (row_offset >= 0) & (row_offset < size)
    in_columns = (column_offset >= 0) & (column_offset < size)
    hole = in_rows[:, :, None] & in_columns[:, None, :]
    return jnp.where(hole[..., None], jnp.zeros((), images.dtype), images)


def flip(images: jax.Array, flipped: jax.Array) -> jax.Array:
    """Mirrors left and right the images `[B, H, W, C]` for which the bool `[B]` is true."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    crop_padding: int = 4,
    rotate_degrees: float = 5.0,
    cutout_size: int = 16,
    random_flip: bool = False,
) -> jax.Array:
    """Augments a batch, each image by its own draw.

    Args:
      key: a key, used up.
      images: float `[B, H, W, C]`, normalised.
      crop_padding: the crop is uniform over the (2 * padding + 1)^2 windows of the image padded by
        this many pixels; 0 switches it off.
      rotate_degrees: the angle is uniform in [-rotate_degrees, rotate_degrees]; 0 switches it off.
      cutout_size: side of the square, its centre uniform over the image's pixels, so that near the
        border part of it falls outside; 0 switches it off.
      random_flip: mirror half of the images. Not in the assignment: off unless asked for.

    Returns:
      float `[B, H, W, C]`, of the input's dtype.
    """
    batch_size, height, width, _ = images.shape
    crop_key, rotate_key, cutout_key, flip_key = jax.random.split(key, 4)
    if random_flip:
        images = flip(images, jax.random.bernoulli(flip_key, shape=(batch_size,)))
    if crop_padding or rotate_degrees:
        shifts = jax.random.randint(crop_key, (batch_size, 2), -crop_padding, crop_padding + 1)
        angles = jax.random.uniform(rotate_key, (batch_size,), minval=-rotate_degrees, maxval=rotate_degrees)
        images = shift_and_rotate(images, shifts, angles)
    if cutout_size:
        centers = jax.random.randint(cutout_key, (batch_size, 2), 0, jnp.array([[height, width]]))
        images = cutout(images, centers, cutout_size)
    return images
