"""A workbench for deep clustering: run, compare, look into and extend the methods.

`import nmc_workbench as nmc` loads nothing; what it offers is imported when it is first used: `nmc.load('digits')`,
`nmc.NMCE(n_clusters=10)`, `nmc.open_run(folder)`, and every room by its name, such as `nmc.losses`."""
# Written by hand: nbdev keeps the version up to date and leaves the rest alone.
__version__ = "0.1.0"

_NAMES = {
    'data': 'load as_images',
    'augment': 'preset',
    'nets': 'backbone',
    'methods': 'NMCE NMC SeLa DeepCluster AND',
    'nets.encoders': 'encoder',
    'training.embed': 'embed',
    'methods.base': 'open_run',
    'runs.finished': 'read_run',
    'runs.index': 'list_runs',
    'runs.table': 'run_table',
    'evaluation': 'evaluate',
    'evaluation.agreement': 'compare',
    'evaluation.quality': 'quality',
    'diagnostics.diagnosis': 'diagnose',
    'explore.explorer': 'Explorer',
    'sweeps.launch': 'sweep',
}
_ROOMS = '''anchors augment cluster core data diagnostics evaluation explore k_rules lloyd losses methods metrics
    modes nets optim persistence plotting projection reports runs subspaces sweeps training transport widgets'''.split()
_PLACE = {name: room for room, names in _NAMES.items() for name in names.split()}

__all__ = [*_PLACE, *_ROOMS]      # noqa: PLE0604  (all of them are strings)


def __getattr__(name):
    "Import what is asked for, and keep it (PEP 562)."
    from importlib import import_module
    if name in _ROOMS: return import_module(f'{__name__}.{name}')
    if name not in _PLACE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it offers {", ".join(__all__)}')
    value = globals()[name] = getattr(import_module(f'{__name__}.{_PLACE[name]}'), name)
    return value


def __dir__(): return sorted([*globals(), *__all__])
