"""Sparsity as a function of training progress, and as a count of weights."""

INTERPOLATIONS = ("linear", "cubic", "inverse_cubic")


def sparsity_to_count(sparsity: float, numel: int, unit: int = 1) -> int:
    """Return how many of ``numel`` weights to prune, to the nearest ``unit``."""
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(
            f"sparsity={sparsity} is outside [0, 1]; expected a fraction of the "
            "prunable weights; write 0.8 for 80 percent"
        )
    return round(sparsity * numel / unit) * unit


def interpolate_sparsity(
    epoch: float,
    start_epoch: float,
    end_epoch: float,
    init_sparsity: float,
    final_sparsity: float,
    inter_func: str = "cubic",
) -> float:
    """Interpolate the target sparsity between two epochs.

    With :math:`x = (t - t_0) / (t_1 - t_0)` clipped to [0, 1] the share of the way
    from ``init_sparsity`` to ``final_sparsity`` is :math:`x` (linear),
    :math:`1 - (1 - x)^3` (cubic, Zhu and Gupta 2018, used in oBERT Table 9 and GMP★
    Appendix B) or :math:`1 - (1 - x)^{1/3}` (inverse_cubic).

    Epochs are of optimizer steps, and may be infinite; sparsities in [0, 1].

    Returns:
        The sparsity at ``epoch`` t, from ``start_epoch`` :math:`t_0` to ``end_epoch``.

    Raises:
        ValueError: If ``inter_func`` is none of :data:`INTERPOLATIONS`.
    """
    if inter_func not in INTERPOLATIONS:
        raise ValueError(
            f"inter_func={inter_func} is unknown; expected one of "
            f"{', '.join(INTERPOLATIONS)}; use cubic"
        )
    if epoch >= end_epoch:
        return final_sparsity
    if epoch <= start_epoch:
        return init_sparsity
    x = (epoch - start_epoch) / (end_epoch - start_epoch)
    share = {
        "linear": x,
        "cubic": 1.0 - (1.0 - x) ** 3,
        "inverse_cubic": 1.0 - (1.0 - x) ** (1.0 / 3.0),
    }[inter_func]
    return init_sparsity + share * (final_sparsity - init_sparsity)
