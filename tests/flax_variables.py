"""Parameters of an MLP as its Flax module takes them."""

from jaxstab.networks.layers import as_layer


def variables(params):
    """Collections for `MLP.apply`: "params", and "batch_stats", "dropout" and "gains" where bound."""
    collections = {}
    for name, bound in params._asdict().items():
        layer = as_layer(bound)
        collections.setdefault("params", {})[name] = layer.params
        if layer.batch_stats:
            collections.setdefault("batch_stats", {})[name] = layer.batch_stats
        if layer.dropout is not None:
            collections.setdefault("dropout", {})[name] = layer.dropout._asdict()
        if layer.sigma_w is not None:
            collections.setdefault("gains", {})[name] = {"sigma_w": layer.sigma_w}
    return collections
