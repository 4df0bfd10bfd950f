"""What a search varies, how its trials end, and what it found; knows neither Ray nor Optuna."""
