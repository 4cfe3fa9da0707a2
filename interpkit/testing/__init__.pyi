"""The public names of the conformance kit and the modules that define them."""

from .checks import Check as Check
from .checks import CheckFailed as CheckFailed
from .checks import Outcome as Outcome
from .checks import checks_of as checks_of
from .checks import outcomes as outcomes
from .suites import check as check
from .suites import check_attribution as check_attribution
from .suites import check_audit as check_audit
from .suites import check_conditioner as check_conditioner
from .suites import check_generator as check_generator
from .suites import check_inverter as check_inverter
from .suites import check_loader as check_loader
from .suites import check_loss as check_loss
from .suites import check_metric as check_metric
from .suites import check_target as check_target
from .suites import parametrize_with_checks as parametrize_with_checks
from .toy_models import evaluate_loss as evaluate_loss
