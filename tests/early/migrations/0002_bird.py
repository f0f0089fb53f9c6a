from __future__ import annotations

from typing import Any

from django.db import migrations


def write(apps: Any, editor: Any) -> None:
    apps.get_model("early", "Bird").objects.create(name="first")


class Migration(migrations.Migration):
    dependencies = [("early", "0001_initial")]

    operations = [migrations.RunPython(write, migrations.RunPython.noop)]
