"""A model loaded in one call, without a server."""

from service.models.loaded import Model, ReadModel


def loaded(read: ReadModel) -> Model:
    """The model, in memory. Raises what loading raises."""
    model = Model(read)
    model.load()
    return model
