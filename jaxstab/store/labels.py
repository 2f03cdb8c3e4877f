"""Attributes of the arrays of a store: long_name and units of the CF conventions.

Gains, shares and correlations have the unit 1; logarithms are natural, their unit the nat.
"""

_NATS = "nats"
_ONE = "1"
_LAYERS = "layers"

_LABELS = {
    # axes and coordinates
    "activation": ("activation function", _ONE),
    "variant": ("kind of network", _ONE),
    "kind": ("kind of network", _ONE),
    "depth": ("depth L, blocks", _LAYERS),
    "layer": ("layer l", _LAYERS),
    "sigma_w": ("weight gain, standard deviation of the weights times sqrt(fan-in)", _ONE),
    "sigma_b": ("standard deviation of the biases", _ONE),
    "learning_rate": ("learning rate", _ONE),
    "clip": ("largest norm of a gradient", _ONE),
    "dropout": ("share of features dropped", _ONE),
    "seed": ("seed of weights, minibatches and masks", _ONE),
    "input": ("number of the input", _ONE),
    "index": ("number of the singular value, descending", _ONE),
    "step": ("updates made before", _ONE),
    "evaluation": ("updates after which all data were evaluated", _ONE),
    "cell": ("number of the cell in its grid, -1 where a row only fills up", _ONE),
    "quantile": ("share of the values below", _ONE),
    "phase_sigma_w": ("weight gain", _ONE),
    "phase_sigma_b": ("standard deviation of the biases", _ONE),
    "done": ("whether the cell is computed", _ONE),
    # measured and predicted fields
    "log_q": ("ln of the mean square pre-activation q", _NATS),
    "saturation": ("share of units that are saturated", _ONE),
    "dead": ("share of units that are dead", _ONE),
    "c": ("correlation of two inputs", _ONE),
    "log_grad_h": ("ln |dL/dh_l|", _NATS),
    "log_grad_theta": ("ln |dL/dtheta_l|", _NATS),
    "log_grad_readout": ("ln |dL/dtheta| of the readout", _NATS),
    "log_s": ("ln of the singular values of dh_L/dx", _NATS),
    "log_mean_square": ("ln of the mean squared singular value", _NATS),
    # fitted fields
    "rate": ("rate d ln|dL/dh_l| / dl", "nats per layer"),
    "verdict": ("whether the gradient vanishes or explodes", _ONE),
    "measured_critical": ("weight gain at which the rate is zero", _ONE),
    "measured_critical_seeds": ("seeds that have such a gain", _ONE),
    "predicted_critical": ("weight gain at which the predicted rate is zero", _ONE),
    "critical_sigma_w": ("weight gain at which chi_1 is 1", _ONE),
    "critical_here": ("weight gain at which chi_1 is 1, at the grid's sigma_b", _ONE),
    "phase_chi_1": ("chi_1, factor of the squared gradient per layer", _ONE),
    "gradient_ratio": ("ln |dL/dh_0| - ln |dL/dh_L|", _NATS),
    "gradient_profile": ("ln |dL/dh_l| - ln |dL/dh_L|", _NATS),
    "log_s_quantile": ("quantiles of ln s over values that are not zero", _NATS),
    "zero_share": ("share of singular values that are zero", _ONE),
    # fixed points
    "q": ("length q* of the fixed point", _ONE),
    "chi_1": ("chi_1, factor of the squared gradient per layer", _ONE),
    "chi_c": ("slope of the correlation map at c*", _ONE),
    "xi_q": ("depth scale of the length", _LAYERS),
    "xi_c": ("depth scale of the correlation", _LAYERS),
    "xi_grad": ("depth scale of the gradient", _LAYERS),
    "stable": ("whether the length is drawn to the fixed point", _ONE),
    # trainings
    "loss": ("loss of each step's minibatch", _NATS),
    "accuracy": ("share of each step's minibatch classified right", _ONE),
    "train_accuracy": ("share of the training data classified right", _ONE),
    "test_accuracy": ("share of the test data classified right", _ONE),
    "norm_before": ("norm of the gradient before clipping", _ONE),
    "coefficient": ("what clipping multiplied the gradient by", _ONE),
    "sharpness": ("largest eigenvalue of the Hessian of the loss", _ONE),
    "sharpness_error": ("bound on the distance of sharpness to an eigenvalue", _ONE),
    "record": ("updates before a record of the sharpness", _ONE),
    "first_nonfinite": ("first step that was not finite, -1 for none", _ONE),
}
_PREFIXES = {
    "predicted_": "predicted ",
    "fixed_point_": "fixed point: ",
    "best_": "at the best gain: ",
}
_SUFFIXES = {"_se": "standard error of "}


def attributes(name: str) -> dict[str, str]:
    """Return the attributes of an array by its name.

    Args:
        name: name of a record's field or of a coordinate, with or without a prefix or suffix such
            as `predicted_` or `_se`.

    Returns:
        `long_name` and `units`; nothing for other names.

    Example:
        >>> attributes("predicted_log_q")
        {'long_name': 'predicted ln of the mean square pre-activation q', 'units': 'nats'}
    """
    if name in _LABELS:
        long_name, units = _LABELS[name]
        return {"long_name": long_name, "units": units}
    for prefix, words in _PREFIXES.items():
        if name.startswith(prefix):
            inner = attributes(name.removeprefix(prefix))
            if inner:
                return inner | {"long_name": words + inner["long_name"]}
    for suffix, words in _SUFFIXES.items():
        if name.endswith(suffix):
            inner = attributes(name.removesuffix(suffix))
            if inner:
                return inner | {"long_name": words + inner["long_name"]}
    return {}
