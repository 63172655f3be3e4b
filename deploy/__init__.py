"""The laptop's side: the demo, pushing, deploying. Never in the image.

To read it, begin with one of `commands`: each asks, shows a `plan`, and then acts.

* the demo: `demo`, `demo_data`, `programs`
* every command: `cli`, `profile`, `errors`, `aws` (boto3)
* data and jobs: `photo_doctor`, `datasets`, `training`, `ec2`, `jobs`
* what runs: `images`, `weights`, `lambda_zip`
* what stands: `stacks`, `endpoint`, `releases`, `notifications`, `inventory`, `teardown`
* advice: `doctor`, `audit`, `quotas`, `loadtest`, `sizing`, `pricing`, `bill`
"""
