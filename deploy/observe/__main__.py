"""Writes the dashboards' JSON files anew: ``python -m deploy.observe``."""

from deploy.observe.grafana import FOLDER, files

for name, text in files().items():
    (FOLDER / name).write_text(text)
