from companion import profiles
from companion.mechanism import study, trials
def test_all():
    sweep = trials.Sweep.of(study.begin(profiles.load("smoke")))
    sweep.on_all_prompts().run([trials.BASE])
