from __future__ import annotations

from django.db import migrations, models

from pgsignals import Notify


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="Bird",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=20)),
            ],
            options={"constraints": [Notify(name="bird_log", fields=["name"], durable=True)]},
        )
    ]
