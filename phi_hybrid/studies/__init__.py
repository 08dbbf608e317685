"""Floor 10: comparisons of trainings over methods and seeds, resumable, with tables and figures."""

from phi_hybrid.studies.comparison import study
from phi_hybrid.studies.result import StudyResult, strict_json
from phi_hybrid.studies.stage import Stage

__all__ = ["Stage", "StudyResult", "strict_json", "study"]
