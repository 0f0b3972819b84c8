"""Prints docs/configuration.md, the page of all fields. `make docs` runs it."""

from ims3_ray.config.field_docs import SETTINGS, STORAGE_ONLY, groups

HEADER = ("field", "type", "default", "")
INTRO = """# Configuration

On the command line a field is `section.field=value`, such as `sample.subgroups=20`; in a recipe's YAML,
sections are mappings. Precedence: command line, recipe, environment (`IMS3_STORAGE`,
`IMS3_WORKERS__ACTORS`; for pretrain `IMS3_PRETRAIN_…`), the defaults below. `ims3 distill --dry-run` prints
all values of a run. A stage's fingerprint covers the fields on which its result depends; a run's key, all
fields except `workers.*`, `storage` and `data.root`. `runs`, `init`, `push` and `doctor` take only `storage`;
`convert` takes no field.
"""


def page() -> str:
    """Returns docs/configuration.md. Each field is documented once, other defaults of it beside the link."""
    lines, documented = [INTRO], dict[str, str]()  # field → default
    for settings in dict.fromkeys(SETTINGS.values()):
        commands = [name for name, own in SETTINGS.items() if own is settings and name not in STORAGE_ONLY]
        lines += [f"## {', '.join(commands)}", "", (settings.__doc__ or "").partition("\n")[0], ""]
        all_groups = groups(settings)
        names = [
            group.name or row.field for group in all_groups for row in group.rows if row.field in documented
        ]
        shared = list(dict.fromkeys(names))
        others = [
            f"`{row.field}={row.default}`"
            for group in all_groups
            for row in group.rows
            if documented.get(row.field, row.default) != row.default
        ]
        if shared:
            defaults = f".\nOther defaults: {', '.join(others)}" if others else ""
            lines += [f"As above: {', '.join(f'`{name}`' for name in shared)}{defaults}.", ""]
        for group in all_groups:
            rows = [row for row in group.rows if row.field not in documented]
            if rows:
                lines += [f"### {group.name}", "", group.description, ""] if group.name else []
                table = [HEADER, ("---",) * len(HEADER)]
                table += [(f"`{r.field}`", r.kind, f"`{r.default}`", r.description) for r in rows]
                lines += [*(f"| {' | '.join(cells)} |" for cells in table), ""]
        documented |= {row.field: row.default for group in all_groups for row in group.rows}
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
