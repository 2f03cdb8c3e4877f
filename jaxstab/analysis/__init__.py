"""Analysis of labelled data: predictions, rates, boundaries, fits, verdicts and summaries."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.analysis.boundary import (
        Boundary,
        DepthFit,
        deepest_trainable,
        fit_depth_scale,
        steps_to,
        tuned,
    )
    from jaxstab.analysis.predictions import predict
    from jaxstab.analysis.survey import survey
    from jaxstab.analysis.trained import summarise
    from jaxstab.analysis.verdicts import crossing, judge, rate

__all__ = [
    "Boundary",
    "DepthFit",
    "crossing",
    "deepest_trainable",
    "fit_depth_scale",
    "judge",
    "predict",
    "rate",
    "steps_to",
    "summarise",
    "survey",
    "tuned",
]
