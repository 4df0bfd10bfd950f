"""One training loop, and what it is made of; knows neither Ray nor MLflow."""
