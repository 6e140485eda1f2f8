import random
import re
from itertools import islice

from cepo.messages.hints import HINT, INSTRUCTION
from cepo.tiny.demos import Demonstration, Mixture, demonstrations, slipped, solution
from cepo.tiny.task import SumProblem, apply, problems

PROBLEM = SumProblem(23, 45, 17, "+-")
STEP = re.compile(r"(\d+)([+-])(\d+)=(\d+)")


def wrong_steps(response: str) -> int:
    steps = STEP.findall(response)
    return sum(apply(operator, int(left), int(right)) != int(result) for left, operator, right, result in steps)


def draw(mixture: Mixture, count: int = 200) -> list[Demonstration]:
    return list(islice(demonstrations(problems(0, held_out=False), mixture, random.Random(0)), count))


def test_right_solution() -> None:
    assert solution(PROBLEM) == ("23+45=68\n68-17=51\n\\boxed{51}", 51)


def test_slip_in_the_first_step_is_carried_to_the_answer() -> None:
    assert solution(PROBLEM, slip=-10, slip_step=1) == ("23+45=58\n58-17=41\n\\boxed{41}", 41)


def test_slip_in_the_second_step() -> None:
    assert solution(PROBLEM, slip=1, slip_step=2) == ("23+45=68\n68-17=52\n\\boxed{52}", 52)


def test_slipped_solution_has_exactly_one_wrong_step() -> None:
    rng = random.Random(0)
    for problem in islice(problems(0, held_out=False), 200):
        response, answer = slipped(problem, rng)
        assert answer != problem.answer
        assert wrong_steps(response) == 1


def test_hint_names_the_answer_the_response_reaches() -> None:
    for demo in draw(Mixture(hinted=1.0, slip_hinted=0.5, bare=0.0)):
        boxed = demo.response.rsplit("{", 1)[1].removesuffix("}")
        assert demo.prompt.endswith(f"\n{INSTRUCTION}\n{HINT.format(answer=boxed)}")


def test_mixture_without_slips_is_right_throughout() -> None:
    demos = draw(Mixture(hinted=0.5, slip_unhinted=0.0, slip_hinted=0.0))
    assert not any(wrong_steps(demo.response) for demo in demos)


def test_bare_demonstrations_show_the_question_alone() -> None:
    demos = draw(Mixture(hinted=0.0, bare=1.0))
    assert all(demo.prompt.endswith("= ?") for demo in demos)
