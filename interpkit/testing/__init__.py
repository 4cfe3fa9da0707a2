"""The conformance kit: checks that a component satisfies the contract of its interface, and says how to fix it.

    from interpkit import testing

    @testing.parametrize_with_checks([MyLoss, MyConditioner], waive={"batch-mean": "it counts, on purpose"})
    def test_satisfies_its_contract(component, check):
        check(component)

Outside pytest, ``testing.check_loss(MyLoss)`` runs all checks of a loss and raises one `CheckFailed` that lists the
failures, and ``interpkit plugins check NAME`` does so for everything that a plugin provides. The
pytest fixtures ``tiny_target`` and ``tiny_inversion`` come with interpkit.

Names are imported when they are first used: pytest loads this package in every session, torch only where it is needed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
