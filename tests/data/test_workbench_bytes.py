"""The tasks that records were made with still give the data that those records have hashes of."""

import hashlib
import random

import pytest

from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.workbench.tasks import TASKS

FIRST = 25
# of the first 25 test records and the pixels of their pictures, as they were when only these tasks were there
HASHES = {
    "source": "23b9a09fa24c5520",
    "format": "f809fbd63a5cd678",
    "format_scene": "6fc08775468efbc2",
    "paints": "539f3f3476641966",
    "stock": "19e034c34fd54709",
}


def test_the_test_split_of_format_is_that_of_the_committed_records():
    """The hash is `data.test.sha256` of the runs of `lora_r16.yaml`, seeds 0 to 2."""
    data = VLMData(train="workbench:format,n=1")
    found = data.digests.all(data.reader.read("test").conversations)
    assert found == "946125912ba2b9f8d99ccaf480ef11b4a694962d8572fda93ea6bf86a83683ab"


@pytest.mark.parametrize("name", HASHES)
def test_scenes_and_questions_are_those_of_the_first_release(name):
    digest = hashlib.sha256()
    for index in range(FIRST):
        rng = random.Random(f"{name} test {index} 0")
        question, scene = TASKS[name].example(rng, "test", index)
        digest.update(f"{question.kind}|{question.prompt}|{question.answer}|".encode())
        if question.about_picture:
            digest.update(TASKS[name].draw(scene).tobytes())
    assert digest.hexdigest()[:16] == HASHES[name]
