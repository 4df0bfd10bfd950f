"""The model registry and its aliases."""

from mlflow.tracking import MlflowClient

from drone.tracking import registry


def test_a_model_with_a_quote_in_its_name_is_rolled_back(parent_run_id: str) -> None:
    client, name = MlflowClient(), "o'hara"
    client.create_registered_model(name)
    for alias in (registry.PREVIOUS, registry.CHAMPION):
        entry = client.create_model_version(name, "somewhere", run_id=parent_run_id)
        client.set_registered_model_alias(name, alias, entry.version)
    assert registry.version_of_run(name, parent_run_id) == "2"
    champion, previous = registry.rollback(name)
    assert (champion.version, previous.version) == ("1", "2")
    assert registry.version_by_alias(name, registry.CHAMPION) == champion
    assert registry.version_by_alias(name, registry.PREVIOUS) == previous
