"""The tasks of a recipe's networks: predicting text, and classifying images."""

from meristem.recipes.tasks.open import open_task as open_task
from meristem.recipes.tasks.task import Task as Task
