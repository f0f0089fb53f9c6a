"""No tables yet. The module must exist all the same: Django sends post_migrate only to apps that have one."""
