"""What a recipe's networks learn: text to be continued, images to be named."""

from meristem.recipes.tasks.open import open_task as open_task
from meristem.recipes.tasks.task import Task as Task
