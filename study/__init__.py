"""How a study is run: an ablation becomes a plan, the plan jobs, the jobs stages, the stages records."""
