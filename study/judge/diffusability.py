"""How well latents suit a generator, told from whole latents before one is trained: measures that foretell gFID.

Unless said otherwise they take latents float32 (N, d, h, w), finite and normalised per channel, as the generator sees
them, and labels int64 (N,). None depends on the order of channels or images, and none on the scale of a channel before
it is normalised. They raise ValueError where they are not defined, as on a grid that is too small, and MetricError
where the result is not finite.

VIV, LNC and SEC are those of Zhong et al. 2026, Diffusing in the Right Space (arXiv 2606.03578), which also says how
each went with gFID; its code could not be read, so what the paper leaves open is decided here. LDS and CDS are iREPA's
(arXiv 2512.10794).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from study.core.randomness import make_rng
from study.judge.finite import checked

ROUNDS = 5  # of the flip-flop; with 20 images in a class and more, further ones changed VIV by less than 0.1%
RIDGE = 1e-6  # of the mean variance, added to a factor before it is inverted: with few images it is singular
WHITE_NUMBERS = 30_000  # at least, behind the VIV of white noise: its mean is then known to better than 1%
ROWS = 1000  # images at a time
SIDE = 16  # cells of the grid for which iREPA's distances are meant
FAR, FARTHEST = 6, 8  # on that grid: distant tokens in LDS, and the last distance of CDS


def viv(latents: Tensor, labels: Tensor) -> float:
    """Velocity irreducible variance: how ambiguous the velocity is that a generator should predict; lower is better.

    Where paths from noise to data cross, the best prediction is a mean of velocities, and their variance remains as
    loss. If the latents of a class are normal with a covariance of eigenvalues l, it is the integral over t in [0, 1]
    of the sum of l / ((1 - t)^2 + t^2 l), which is pi / 2 times the sum of sqrt(l) (the paper's equations 4 and 5).
    VIV is its mean over dimensions and over classes. The covariance is taken to be the Kronecker product of one of
    channels and one of cells, see `standard_deviations`.

    Correction for the number of dimensions: a covariance that is estimated from few images has eigenvalues that spread
    too much, so that VIV comes out too low, and more so the fewer images there are for its size. White noise, whose
    VIV is pi / 2, measures 1.29 with 32 channels on a grid of 16 x 16 and 10 images in a class, and 0.55 with 4. So
    the VIV of each class is divided by what white noise of its shape and number of images measures (`white`), times
    pi / 2; white latents then have VIV pi / 2 whatever their channels and cells. With 100 images in a class, a grid of
    16 x 16 and 32 channels, or with 1,000 images on smaller grids, the correction is below 2%. It is exact for white
    latents only, and too large for latents of few directions where it is large.

    What is not corrected belongs to the definition: of latents that vary in r directions alike, VIV is pi / 2 times
    sqrt(r / dimensions), so that channels which add nothing lower it. Widths and grids are better compared apart.

    Classes with a single image have no covariance and are left out; ValueError if there is no other.
    """
    shares = []
    white_of: dict[int, float] = {}
    for label in labels.unique():
        of_class = latents[labels == label].flatten(2)
        count, *shape = of_class.shape
        if count < 2:
            continue
        if count not in white_of:
            white_of[count] = white(count, *shape)
        shares.append(standard_deviations(of_class).mean().item() / white_of[count])
    if not shares:
        raise ValueError("VIV needs a class with two images")
    return checked({"viv": math.pi / 2 * sum(shares) / len(shares)})["viv"]


def white(count: int, channels: int, cells: int) -> float:
    """Mean of `standard_deviations` of white noise (count, channels, cells), over draws of WHITE_NUMBERS together."""
    draws = range(-(-WHITE_NUMBERS // (count * channels * cells)))
    noise = (torch.randn(count, channels, cells, generator=make_rng(0, "white latents", draw)) for draw in draws)
    return sum(standard_deviations(one).mean().item() for one in noise) / len(draws)


def standard_deviations(points: Tensor) -> Tensor:
    """Square roots (d * s,) float64 of the eigenvalues of the covariance of points (n, d, s), float32, n at least 2.

    The covariance is the Kronecker product of a factor of channels (d, d) and one of cells (s, s), by maximum
    likelihood: each in turn is the covariance that is left when the other is whitened ("flip-flop", Dutilleul 1999),
    ROUNDS times. The product is scaled to the total variance of the points, with the divisor n.
    """
    count, d, s = points.shape
    centred = points.double() - points.double().mean(dim=0)  # products of small eigenvalues are lost in float32
    total = centred.square().sum() / count
    if total == 0:
        return torch.zeros(d * s, dtype=torch.float64)
    by_channel = centred.transpose(0, 1).reshape(d, count * s)
    by_cell = by_channel.view(d * count, s)
    of_cells = torch.eye(s, dtype=torch.float64)
    for _ in range(ROUNDS):
        whitened = (by_cell @ _inverse(of_cells)).view(d, count * s)
        of_channels = whitened @ by_channel.T / (count * s)
        whitened = (_inverse(of_channels) @ by_channel).view(d * count, s)
        of_cells = whitened.T @ by_cell / (d * count)
    eigenvalues = [torch.linalg.eigvalsh(factor).clamp(min=0) for factor in (of_channels, of_cells)]
    products = torch.outer(*eigenvalues).flatten()
    return (products * (total / products.sum())).sqrt()


def _inverse(covariance: Tensor) -> Tensor:
    """(d, d); of a singular covariance the inverse where it has variance, for vectors that have none elsewhere."""
    values, vectors = torch.linalg.eigh(covariance)  # Cholesky's method fails where rounding left a value below 0
    values = values.clamp(min=0) + RIDGE * covariance.diagonal().mean()
    return vectors / values @ vectors.T


def lnc(latents: Tensor, labels: Tensor, k: int) -> float:
    """Latent neighbour consistency: the share of an image's k nearest others that have its label; higher is better.

    Near is a large cosine between means of latents over their cells, (N, d). The paper takes the mean over a mask of
    the foreground, which no data set here has; so this is over the whole image, and lower. By chance it is the share
    of the label; a class of fewer than k + 1 images cannot reach 1.

    Raises:
        ValueError: fewer than k + 1 images.
    """
    if len(latents) <= k:
        raise ValueError(f"LNC of {k} neighbours needs more than {k} images, got {len(latents)}")
    directions = normalize(latents.mean(dim=(2, 3)), dim=1)
    same = 0
    for start in range(0, len(latents), ROWS):
        cosines = directions[start : start + ROWS] @ directions.T
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -torch.inf
        neighbours = cosines.topk(k, dim=1, sorted=False).indices
        same += int((labels[neighbours] == labels[start : start + ROWS, None]).sum())
    return same / (k * len(latents))


def sec(latents: Tensor, share: float) -> float:
    """Spectral energy concentration: the share of energy at high frequencies; lower is smoother (the paper's eq. 9).

    Frequencies (u, v) of the orthonormal DCT-II over cells are high if u + v exceeds `share` of the highest, h + w - 2.
    Of white noise it is the share of frequencies that are high, which the grid decides: for 0.25 and 0.5 it is 0.81 and
    0.38 at 4 x 4 cells, 0.84 and 0.44 at 8 x 8, 0.86 and 0.47 at 16 x 16. So compare it on one grid only.

    Raises:
        ValueError: a grid of one cell.
    """
    height, width = latents.shape[2:]
    if height * width == 1:
        raise ValueError("SEC needs more than one cell")
    energy = torch.zeros(height, width, dtype=torch.float64)
    for part in latents.split(ROWS):
        energy += (_cosine_basis(height) @ part @ _cosine_basis(width).T).square().sum(dim=(0, 1))
    frequency = torch.arange(height)[:, None] + torch.arange(width)
    high = frequency > share * (height + width - 2)
    return checked({"sec": (energy[high].sum() / energy.sum()).item()})["sec"]


def _cosine_basis(count: int) -> Tensor:
    """(count, count): the orthonormal DCT-II, a row for each frequency."""
    position, frequency = torch.arange(count) + 0.5, torch.arange(count)[:, None]
    basis = torch.cos(math.pi / count * frequency * position) * math.sqrt(2 / count)
    basis[0] /= math.sqrt(2)
    return basis


def lds_and_cds(latents: Tensor) -> dict[str, float]:
    """How much more alike neighbouring tokens of an image are than distant ones; both are higher with more structure.

    lds, local versus distant similarity: mean cosine of tokens one cell apart less that of tokens at least FAR apart.
    cds, correlation decay slope: less the slope of a straight line through mean cosine against distance, for each
    distance up to FARTHEST that the grid has. Distances are |dx| + |dy|. Both are means over images (iREPA,
    spatial_metrics.py: metric_lds, metric_cds).

    FAR and FARTHEST are those of iREPA's grid of SIDE cells a side. They scale with the grid and are at least 2: on a
    grid of 8 x 8 they are 3 and 4; on 4 x 4 and on 2 x 2 both are 2, so that CDS has two distances there and its line
    is their difference. The slope is per 1 / SIDE of the picture's side, not per cell. On 16 x 16 both are iREPA's.

    Raises:
        ValueError: a grid with fewer than 2 cells a side.
    """
    height, width = latents.shape[2:]
    if min(height, width) < 2:
        raise ValueError(f"LDS and CDS need at least 2 x 2 cells, got {height} x {width}")
    cosines = _mean_cosines(latents)
    y, x = (places.flatten() for places in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    distance = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    scale = (height + width) / 2 / SIDE  # cells of this grid in one of iREPA's
    far, farthest = (max(2, round(scale * cells)) for cells in (FAR, FARTHEST))
    lds = cosines[distance == 1].mean() - cosines[distance >= far].mean()
    distances = torch.arange(1, min(farthest, height + width - 2) + 1)
    means = torch.stack([cosines[distance == apart].mean() for apart in distances])
    at = distances.double() / scale
    slope = (at - at.mean()) @ means / (at - at.mean()).square().sum()
    return checked({"lds": lds.item(), "cds": -slope.item()})


def _mean_cosines(latents: Tensor) -> Tensor:
    """(cells, cells) float64: cosines between the tokens of an image, a mean over images; 0 for a token of zeros."""
    total = torch.zeros(latents[0, 0].numel(), latents[0, 0].numel(), dtype=torch.float64)
    for part in latents.split(ROWS):
        by_cell = normalize(part.flatten(2), dim=1).flatten(0, 1)  # (n * d, cells)
        total += by_cell.T @ by_cell
    return total / len(latents)


def eq_error(encode: Callable[[Tensor], Tensor], pixels: Iterable[Tensor], std: Tensor) -> float:
    """Equivariance error: how far latents of turned or shrunk pictures are from turned or shrunk latents.

    The transformations are EQ-VAE's (arXiv 2502.09509): turns by 90, 180 and 270 degrees, and scale, here to half the
    size, bilinear, which is the mean over 2 x 2. For each the root mean square of encode(T(x)) - T(encode(x)), over the
    standard deviation of the latent's channel, so that the latent's scale does not matter; then the mean of the turns'
    error and the scale's. 0 is equivariant; latents that have nothing to do with one another have sqrt(2) for turns.
    Halving leaves a grid of 4 x 4 cells 2 x 2, mostly border.

    Encodes each picture four times, and once at half the size.

    Args:
        encode: pixels (B, C, H, W) to posterior means (B, d, h, w).
        pixels: batches of pictures in [-1, 1].
        std: (d, 1, 1), of the latents.

    Raises:
        ValueError: a grid of odd sides, which cannot be halved.
    """
    turns, scale = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)  # sum of squares, number

    def compare(sums: Tensor, one: Tensor, other: Tensor) -> None:
        difference = (one - other) / std
        sums += torch.tensor([difference.double().square().sum().item(), difference.numel()])

    for batch in pixels:
        latents = encode(batch)
        if any(side % 2 for side in latents.shape[2:]):
            raise ValueError(f"the EQ error needs a grid of even sides, got {tuple(latents.shape[2:])}")
        for quarter in (1, 2, 3):
            compare(turns, encode(batch.rot90(quarter, (2, 3))), latents.rot90(quarter, (2, 3)))
        compare(scale, encode(avg_pool2d(batch, 2)), avg_pool2d(latents, 2))
    errors = [math.sqrt(squares / number) for squares, number in (turns.tolist(), scale.tolist())]
    return checked({"eq_error": sum(errors) / 2})["eq_error"]
