"""Read-only web view of a storage's runs."""
