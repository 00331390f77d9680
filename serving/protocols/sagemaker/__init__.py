"""SageMaker's and MLflow's one call, and the many bodies that it takes."""
