"""What an evaluation that fails says to a user: the step before it is kept, and the run can go on without samples."""

from __future__ import annotations

from ..errors import UserError, first_line, is_out_of_memory


def evaluation_failure(step: int, error: BaseException) -> BaseException:
    """``error``, which ended the evaluation after ``step``, as a UserError that says how to go on; a defect as it is."""
    goes_on = (
        f"`resume` goes on from step {step}; with validation.prompts: [] and "
        "validation.num_prompts: 0 it draws no samples, with validation.steps: 0 it evaluates only at the end"
    )
    what = f"evaluation after step {step}"
    if isinstance(error, UserError):
        return UserError(f"{what}: {error.problem}", f"{error.remedy}; {goes_on}" if error.remedy else goes_on)
    if is_out_of_memory(error):
        return UserError(f"{what}: out of memory: {first_line(error)}", goes_on)
    if isinstance(error, OSError):
        return UserError(f"{what}: {error.filename or 'a file'}: {error.strerror or error}", goes_on)
    return error
