"""The projections that a model is loaded with: found beside it, or beside the model that `qaic_config` names."""

from __future__ import annotations

from QEfficient.errors import OptionError
from QEfficient.specs import PROJECTED
from QEfficient.transformers.loading import ModelSource, find_file
from QEfficient.transformers.models.card_options import PROJECTIONS_PLACE, CardConfig
from QEfficient.transformers.projections import CONFIG, WEIGHTS, ProjectionFiles, read_projections


def open_projections(config: CardConfig, source: ModelSource) -> ProjectionFiles | None:
    """None if none were asked for; refuses a model that has none."""
    if not config.projections:
        return None
    place = config.projections_place or source.location
    if not place:
        raise OptionError(
            f"qaic_config['speculative_model_type'] = '{PROJECTED}' needs a checkpoint, but the model is an object. Say"
            f" in qaic_config['{PROJECTIONS_PLACE}'] beside which model its projections lie."
        )
    name = config.projections_place or source.name
    return read_projections(name, *(find_file(place, file, source.hub) for file in (CONFIG, WEIGHTS)))
