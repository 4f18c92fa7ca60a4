"""Training batches of the embedded models: published pictures and rendered ones, with questions about them."""

from __future__ import annotations

import numpy as np

from models.embedded import easyvqa, shapes
from models.embedded.recipe import Recipe

# width, height of the other pictures that the processor leaves as they are; 4:3 first, as cameras make them
CANVASES = ((64, 48), (64, 48), (48, 64), (80, 48), (48, 80), (96, 32), (32, 96))
HELD_OUT = 200  # published training pictures kept out of training to follow progress


class Pictures:
    """Draws training batches: published pictures and rendered ones, with scenes and questions."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        published = easyvqa.training_items()
        self.held_out, self.published = published[-HELD_OUT:], published[:-HELD_OUT]
        self.scenes = [_scene_of(item) for item in self.published]

    def batch(
        self, rng: np.random.Generator, dense: float, canvases: bool, detect: bool, balanced: float | None = None
    ) -> tuple[np.ndarray, list[shapes.Scene | None], list[list[tuple[str, str]]]]:
        """Return pixels (pictures, height, width, 3), the scenes (None where unknown), questions per picture.

        With `balanced` no published question is drawn, and that share of the yes/no questions is negated.
        """
        canvas = CANVASES[rng.integers(len(CANVASES))] if canvases and rng.random() < 0.25 else (64, 64)
        pixels, scenes, questions = [], [], []
        for _ in range(self.recipe.pictures):
            scene: shapes.Scene | None
            if canvas == (64, 64) and rng.random() < self.recipe.published_share:
                index = int(rng.integers(len(self.published)))
                published, scene = self.published[index].questions, self.scenes[index]
                array = self.published[index].pixels
                array = array[:, ::-1] if rng.random() < 0.5 else array
            else:
                picture, scene = shapes.render(rng, bool(rng.random() < self.recipe.varied_share), canvas)
                published, array = (), np.asarray(picture)
            if balanced is not None and scene is not None:
                published = ()
            pixels.append(array)
            scenes.append(scene)
            questions.append(
                [self._ask(rng, scene, published, dense, detect, balanced) for _ in range(self.recipe.questions)]
            )
        return np.stack(pixels), scenes, questions

    @staticmethod
    def _ask(
        rng: np.random.Generator,
        scene: shapes.Scene | None,
        published: tuple[tuple[str, str], ...],
        dense: float,
        detect: bool,
        balanced: float | None,
    ) -> tuple[str, str]:
        """Draw one question: a published one half of the time where there are any, else one about the scene."""
        if published and (scene is None or rng.random() < 0.5):
            return published[rng.integers(len(published))]
        assert scene is not None
        if detect and not published and rng.random() < 0.15:
            return f"detect {scene.shape}", locate(scene)
        negation = 0.5 if balanced is None else balanced
        question, truth = shapes.draw_question(rng, scene, dense, negation=negation)
        return (shapes.rephrase(rng, question) if rng.random() < 0.25 else question), truth


def locate(scene: shapes.Scene) -> str:
    """Return PaliGemma's form of a box: <locYMIN><locXMIN><locYMAX><locXMAX> in 1024ths, then the name."""
    x0, y0, x1, y1 = (min(1023, round(v * 1023)) for v in scene.box)
    return f"<loc{y0:04d}><loc{x0:04d}><loc{y1:04d}><loc{x1:04d}> {scene.shape}"


def _scene_of(item: easyvqa.TrainingPicture) -> shapes.Scene | None:
    """Return what the published answers say about a picture, or None when they leave colour or shape open."""
    answers = [answer for _, answer in item.questions]
    shape = next((a for a in answers if a in shapes.SHAPES), None)
    color = next((a for a in answers if a in shapes.COLORS), None)
    return shapes.Scene(shape, color, (0, 0, 0, 0)) if shape and color else None
