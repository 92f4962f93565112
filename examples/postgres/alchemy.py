from shop import DATABASE, app, confirm
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine(DATABASE.replace("postgresql://", "postgresql+psycopg://"))

with Session(engine) as session, session.begin():
    order = session.execute(text("INSERT INTO orders (customer) VALUES ('Eve') RETURNING id")).scalar_one()
    with app.transaction(session):
        result = confirm.delay(order)
print(result.get(timeout=10))
