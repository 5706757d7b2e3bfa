"""The exercises and quizzes of the course. Lessons write `from coursekit.course import check, quiz`."""

from coursekit.course.exercises import check
from coursekit.course.quiz import quiz

__all__ = ["check", "quiz"]
